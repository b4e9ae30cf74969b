"""Every action of KMS by the official SDKs: a new user may exactly what its policy says."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import huaweicloudsdkiam.v3 as iam
import huaweicloudsdkkms.v2 as kms
import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkcore.region.region import Region

from hsmd.api.methods import methods_of
from hsmd.client import Client
from hsmd.descriptors import services
from tests.calls import fresh
from tests.people import iam_client, name
from tests.policies import (
    LEFT_OUT,
    LOOK,
    PERMISSION,
    statement_of,
)
from tests.stand import Stand
from tests.test_sdk import checked


def kms_client(stand: Stand, access_key: str, secret_key: str) -> kms.KmsClient:
    """The official SDK with these credentials in the development project."""
    credentials = BasicCredentials(access_key, secret_key, stand.dev.project_id)
    config = HttpConfig.get_default_config()
    config.ssl_ca_cert = str(stand.dev.ca)
    builder = kms.KmsClient.new_builder().with_http_config(config).with_credentials(credentials)
    client: kms.KmsClient = builder.with_region(Region(stand.dev.region, stand.dev.rest)).build()
    return client


@dataclass(frozen=True)
class NewUser:
    """Made by the SDK: who may what its group's one policy says."""

    admin: iam.IamClient
    policy_id: str
    kms: kms.KmsClient
    user_id: str
    group_id: str

    def may(self, *statements: dict[str, Any]) -> None:
        """The policy says this from the next call on."""
        policy = iam.ServicePolicy(version="1.1", statement=[statement_of(each) for each in statements])
        option = iam.ServicePolicyRoleOption(
            display_name=f"of {self.user_id}", type="XA", description="", policy=policy
        )
        body = iam.UpdateCloudServiceCustomPolicyRequestBody(role=option)
        request = iam.UpdateCloudServiceCustomPolicyRequest(role_id=self.policy_id, body=body)
        checked(self.admin.update_cloud_service_custom_policy(request), absent=LEFT_OUT)


@pytest.fixture(scope="module")
def newcomer(stand: Stand) -> NewUser:
    admin, dev = iam_client(stand), stand.dev
    user_option = iam.KeystoneCreateUserOption(name=name(), domain_id=dev.domain_id, enabled=True)
    user_request = iam.KeystoneCreateUserRequest(body=iam.KeystoneCreateUserRequestBody(user=user_option))
    user = admin.keystone_create_user(user_request).user
    group_option = iam.KeystoneCreateGroupOption(name=name("group"), domain_id=dev.domain_id)
    group_request = iam.KeystoneCreateGroupRequest(
        body=iam.KeystoneCreateGroupRequestBody(group=group_option)
    )
    group = admin.keystone_create_group(group_request).group
    admin.keystone_add_user_to_group(iam.KeystoneAddUserToGroupRequest(group_id=group.id, user_id=user.id))
    policy = iam.ServicePolicy(version="1.1", statement=[statement_of(LOOK)])
    option = iam.ServicePolicyRoleOption(
        display_name=f"of {user.id}", type="XA", description="one", policy=policy
    )
    created = admin.create_cloud_service_custom_policy(
        iam.CreateCloudServiceCustomPolicyRequest(
            body=iam.CreateCloudServiceCustomPolicyRequestBody(role=option)
        )
    )
    role = checked(created, absent=LEFT_OUT).role
    assert (role.domain_id, role.catalog, role.type) == (dev.domain_id, "CUSTOMED", "XA")
    given = admin.keystone_associate_group_with_project_permission(
        iam.KeystoneAssociateGroupWithProjectPermissionRequest(
            project_id=dev.project_id, group_id=group.id, role_id=role.id
        )
    )
    assert given.status_code == 204
    credential = iam.CreateCredentialOption(user_id=user.id)
    key_request = iam.CreatePermanentAccessKeyRequest(
        body=iam.CreatePermanentAccessKeyRequestBody(credential=credential)
    )
    key = admin.create_permanent_access_key(key_request).credential
    return NewUser(admin, role.id, kms_client(stand, key.access, key.secret), user.id, group.id)


@dataclass(frozen=True)
class Things:
    """Keys that actions are tried on, and what else they need."""

    key: str
    rsa: str
    mac: str
    external: str


@pytest.fixture(scope="module")
def things(client: Client) -> Things:
    return Things(
        client.create_key(fresh()),
        client.create_key(fresh(), spec="RSA_2048", usage="SIGN_VERIFY"),
        client.create_key(fresh(), spec="HMAC_256"),
        client.create_key(fresh(), origin="external"),
    )


_NONE = "0" * 32  # the id of nothing


def _operate(key: str) -> kms.OperateKeyRequestBody:
    return kms.OperateKeyRequestBody(key_id=key)


# Every action of KMS with an operation of the SDK that needs it. What else is wrong with the call is not
# looked at here: only whether the policy lets it through.
ACTIONS: dict[str, Callable[[kms.KmsClient, Things], object]] = {
    "kms:cmk:create": lambda sdk, _: sdk.create_key(
        kms.CreateKeyRequest(body=kms.CreateKeyRequestBody(key_alias=fresh()))
    ),
    "kms:cmk:enable": lambda sdk, on: sdk.enable_key(kms.EnableKeyRequest(body=_operate(on.key))),
    "kms:cmk:disable": lambda sdk, on: sdk.disable_key(kms.DisableKeyRequest(body=_operate(on.external))),
    "kms:cmk:update": lambda sdk, on: sdk.update_key_description(
        kms.UpdateKeyDescriptionRequest(
            body=kms.UpdateKeyDescriptionRequestBody(key_id=on.key, key_description="x")
        )
    ),
    "kms:cmk:list": lambda sdk, _: sdk.list_keys(kms.ListKeysRequest(body=kms.ListKeysRequestBody())),
    "kms:cmk:get": lambda sdk, on: sdk.list_key_detail(kms.ListKeyDetailRequest(body=_operate(on.key))),
    "kms:cmk:generate": lambda sdk, _: sdk.create_random(
        kms.CreateRandomRequest(body=kms.GenRandomRequestBody(random_data_length="64"))
    ),
    "kms:dek:create": lambda sdk, on: sdk.create_datakey(
        kms.CreateDatakeyRequest(body=kms.CreateDatakeyRequestBody(key_id=on.key, datakey_length="256"))
    ),
    "kms:dek:crypto": lambda sdk, on: sdk.encrypt_datakey(
        kms.EncryptDatakeyRequest(
            body=kms.EncryptDatakeyRequestBody(key_id=on.key, plain_text="00" * 64, datakey_plain_length="32")
        )
    ),
    "kms:cmk:getInstance": lambda sdk, _: sdk.show_user_instances(kms.ShowUserInstancesRequest()),
    "kms:cmk:getQuota": lambda sdk, _: sdk.show_user_quotas(kms.ShowUserQuotasRequest()),
    "kms:grant:create": lambda sdk, on: sdk.create_grant(
        kms.CreateGrantRequest(
            body=kms.CreateGrantRequestBody(
                key_id=on.key, grantee_principal="0" * 32, operations=["describe-key"]
            )
        )
    ),
    "kms:grant:revoke": lambda sdk, on: sdk.cancel_grant(
        kms.CancelGrantRequest(body=kms.RevokeGrantRequestBody(key_id=on.key, grant_id="0" * 64))
    ),
    "kms:grant:retire": lambda sdk, on: sdk.cancel_self_grant(
        kms.CancelSelfGrantRequest(body=kms.RevokeGrantRequestBody(key_id=on.key, grant_id="0" * 64))
    ),
    "kms:grant:list": lambda sdk, on: sdk.list_grants(
        kms.ListGrantsRequest(body=kms.ListGrantsRequestBody(key_id=on.key))
    ),
    "kms:cmk:crypto": lambda sdk, on: sdk.encrypt_data(
        kms.EncryptDataRequest(body=kms.EncryptDataRequestBody(key_id=on.key, plain_text="x"))
    ),
    "kms:cmk:getMaterial": lambda sdk, on: sdk.create_parameters_for_import(
        kms.CreateParametersForImportRequest(
            body=kms.GetParametersForImportRequestBody(
                key_id=on.external, wrapping_algorithm="RSAES_OAEP_SHA_256"
            )
        )
    ),
    "kms:cmk:importMaterial": lambda sdk, on: sdk.import_key_material(
        kms.ImportKeyMaterialRequest(
            body=kms.ImportKeyMaterialRequestBody(
                key_id=on.external, import_token="eA==", encrypted_key_material="eA=="
            )
        )
    ),
    "kms:cmk:deleteMaterial": lambda sdk, on: sdk.delete_imported_key_material(
        kms.DeleteImportedKeyMaterialRequest(body=_operate(on.external))
    ),
    "kms:cmk:enableRotation": lambda sdk, on: sdk.enable_key_rotation(
        kms.EnableKeyRotationRequest(body=_operate(on.rsa))
    ),
    "kms:cmk:updateRotation": lambda sdk, on: sdk.update_key_rotation_interval(
        kms.UpdateKeyRotationIntervalRequest(
            body=kms.UpdateKeyRotationIntervalRequestBody(key_id=on.rsa, rotation_interval=30)
        )
    ),
    "kms:cmk:disableRotation": lambda sdk, on: sdk.disable_key_rotation(
        kms.DisableKeyRotationRequest(body=_operate(on.rsa))
    ),
    "kms:cmk:getRotation": lambda sdk, on: sdk.show_key_rotation_status(
        kms.ShowKeyRotationStatusRequest(body=_operate(on.key))
    ),
    "kms:cmkTag:listInstance": lambda sdk, _: sdk.list_kms_by_tags(
        kms.ListKmsByTagsRequest(
            resource_instances="resource_instances",
            body=kms.ListKmsByTagsRequestBody(action="count", tags=[]),
        )
    ),
    "kms:cmkTag:list": lambda sdk, on: sdk.show_kms_tags(kms.ShowKmsTagsRequest(key_id=on.key)),
    "kms:cmkTag:batch": lambda sdk, on: sdk.batch_create_kms_tags(
        kms.BatchCreateKmsTagsRequest(
            key_id=on.key,
            body=kms.BatchCreateKmsTagsRequestBody(action="create", tags=[kms.TagItem(key="a", value="b")]),
        )
    ),
    "kms:cmkTag:create": lambda sdk, on: sdk.create_kms_tag(
        kms.CreateKmsTagRequest(
            key_id=on.key, body=kms.CreateKmsTagRequestBody(tag=kms.TagItem(key="a", value="b"))
        )
    ),
    "kms:cmkTag:delete": lambda sdk, on: sdk.delete_tag(kms.DeleteTagRequest(key_id=on.key, key="a")),
    "kms:cmk:sign": lambda sdk, on: sdk.sign(
        kms.SignRequest(
            body=kms.SignRequestBody(
                key_id=on.rsa, message="eA==", signing_algorithm="RSASSA_PSS_SHA_256", message_type="RAW"
            )
        )
    ),
    "kms:cmk:verify": lambda sdk, on: sdk.validate_signature(
        kms.ValidateSignatureRequest(
            body=kms.VerifyRequestBody(
                key_id=on.rsa,
                message="eA==",
                signature="eA==",
                signing_algorithm="RSASSA_PSS_SHA_256",
                message_type="RAW",
            )
        )
    ),
    "kms:cmk:getPublicKey": lambda sdk, on: sdk.show_public_key(
        kms.ShowPublicKeyRequest(body=_operate(on.rsa))
    ),
    "kms:cmk:generateMac": lambda sdk, on: sdk.generate_mac(
        kms.GenerateMacRequest(
            body=kms.GenerateMacRequestBody(key_id=on.mac, message="eA==", mac_algorithm="HMAC_SHA_256")
        )
    ),
    "kms:cmk:verifyMac": lambda sdk, on: sdk.verify_mac(
        kms.VerifyMacRequest(
            body=kms.VerifyMacRequestBody(
                key_id=on.mac, message="eA==", mac_algorithm="HMAC_SHA_256", mac="eA=="
            )
        )
    ),
    "kms:alias:create": lambda sdk, on: sdk.create_alias(
        kms.CreateAliasRequest(body=kms.CreateAliasRequestBody(key_id=on.key, alias=f"alias/{fresh()}"))
    ),
    "kms:alias:delete": lambda sdk, on: sdk.delete_alias(
        kms.DeleteAliasRequest(body=kms.DeleteAliasRequestBody(key_id=on.key, aliases=["alias/none"]))
    ),
    "kms:alias:associate": lambda sdk, on: sdk.associate_alias(
        kms.AssociateAliasRequest(
            body=kms.AssociateAliasRequestBody(target_key_id=on.key, alias="alias/none")
        )
    ),
    "kms:alias:list": lambda sdk, on: sdk.list_aliases(kms.ListAliasesRequest(key_id=on.key)),
    "kms:cmk:createDataKeyPair": lambda sdk, on: sdk.create_ec_datakey_pair(
        kms.CreateEcDatakeyPairRequest(
            body=kms.CreateEcDatakeyPairRequestBody(
                key_id=on.key, key_spec="ECC_NIST_P256", with_plain_text="false"
            )
        )
    ),
    "kms:cmk:createDatakeyCapsule": lambda sdk, on: sdk.create_datakey_capsule(
        kms.CreateDatakeyCapsuleRequest(
            body=kms.CreateDatakeyCapsuleRequestBody(
                key_id=on.key, public_key="eA==", datakey_length="256", policy_id=_NONE
            )
        )
    ),
    "kms:cmk:decryptDatakeyCapsule": lambda sdk, on: sdk.decrypt_datakey_capsule(
        kms.DecryptDatakeyCapsuleRequest(
            body=kms.DecryptDatakeyCapsuleRequestBody(
                key_id=on.key,
                public_key="eA==",
                datakey_capsule="eA==",
                attestation_document=kms.DecryptDatakeyCapsuleRequestBodyAttestationDocument(),
            )
        )
    ),
    "kms:cmk:deriveSharedSecret": lambda sdk, on: sdk.derive_shared_secret(
        kms.DeriveSharedSecretRequest(
            body=kms.DeriveSharedSecretRequestBody(
                key_id=on.key, key_agreement_algorithm="ECDH", public_key="eA=="
            )
        )
    ),
    "kms:cmk:listSupportRegions": lambda sdk, _: sdk.list_support_regions(kms.ListSupportRegionsRequest()),
    "kms:cmk:replicate": lambda sdk, on: sdk.replicate_key(
        kms.ReplicateKeyRequest(
            key_id=on.key,
            body=kms.ReplicateKeyRequestBody(
                key_id=on.key, replica_region="elsewhere-1", key_alias="none", replica_project_id=_NONE
            ),
        )
    ),
    "kms:cmk:rotate": lambda sdk, on: sdk.rotate_on_demand(
        kms.RotateOnDemandRequest(body=kms.RotateOnDemandRequestBody(key_id=on.key))
    ),
    "kms:cmk:updatePrimaryRegion": lambda sdk, on: sdk.update_primary_region(
        kms.UpdatePrimaryRegionRequest(
            key_id=on.key,
            body=kms.UpdatePrimaryRegionRequestBody(key_id=on.key, primary_region="elsewhere-1"),
        )
    ),
    "kms:keystore:create": lambda sdk, _: sdk.create_key_store(
        kms.CreateKeyStoreRequest(
            body=kms.CreateKeyStoreRequestBody(
                keystore_alias="none", hsm_cluster_id=_NONE, hsm_ca_cert="eA==", keystore_type="DHSM"
            )
        )
    ),
    "kms:keystore:delete": lambda sdk, _: sdk.delete_key_store(kms.DeleteKeyStoreRequest(_NONE)),
    "kms:keystore:enable": lambda sdk, _: sdk.enable_key_store(kms.EnableKeyStoreRequest(_NONE)),
    "kms:keystore:disable": lambda sdk, _: sdk.disable_key_store(kms.DisableKeyStoreRequest(_NONE)),
    "kms:keystore:get": lambda sdk, _: sdk.show_key_store(kms.ShowKeyStoreRequest(_NONE)),
    "kms:keystore:list": lambda sdk, _: sdk.list_key_stores(kms.ListKeyStoresRequest()),
    "kms:accessPoint:create": lambda sdk, _: sdk.create_access_point(
        kms.CreateAccessPointRequest(
            body=kms.CreateAccessPointRequestBody(
                keyspace_id=_NONE, access_point_name="none", type="1", identity="x"
            )
        )
    ),
    "kms:accessPoint:delete": lambda sdk, _: sdk.delete_access_point(kms.DeleteAccessPointRequest(_NONE)),
    "kms:accessPoint:enable": lambda sdk, _: sdk.enable_access_point(kms.EnableAccessPointRequest(_NONE)),
    "kms:accessPoint:disable": lambda sdk, _: sdk.disable_access_point(kms.DisableAccessPointRequest(_NONE)),
    "kms:accessPoint:downloadPrivateKey": lambda sdk, _: sdk.download_access_point_private_key(
        kms.DownloadAccessPointPrivateKeyRequest(_NONE)
    ),
    "kms:accessPoint:list": lambda sdk, _: sdk.list_access_point(
        kms.ListAccessPointRequest(keyspace_id=_NONE)
    ),
    "kms:policy:create": lambda sdk, _: sdk.create_key_policy(
        kms.CreateKeyPolicyRequest(
            body=kms.CreateKeyPolicyRequestBody(keyspace_id=_NONE, policy_name="none", policy="{}")
        )
    ),
    "kms:policy:delete": lambda sdk, _: sdk.delete_key_policy(kms.DeleteKeyPolicyRequest(_NONE)),
    "kms:policy:get": lambda sdk, _: sdk.show_key_policy(kms.ShowKeyPolicyRequest(_NONE)),
    "kms:policy:list": lambda sdk, _: sdk.list_key_policy(kms.ListKeyPolicyRequest(keyspace_id=_NONE)),
    "kms:policy:update": lambda sdk, _: sdk.update_key_policy(
        kms.UpdateKeyPolicyRequest(_NONE, body=kms.UpdateKeyPolicyRequestBody(policy="{}"))
    ),
}


def lets_through(act: Callable[[], object]) -> bool:
    """Whether the call is not refused for want of a permission."""
    try:
        act()
    except ClientRequestException as error:
        return bool(error.error_code != PERMISSION)
    return True


@pytest.mark.parametrize("action", ACTIONS)
def test_a_new_user_may_exactly_what_the_policy_says(newcomer: NewUser, things: Things, action: str) -> None:
    act = ACTIONS[action]
    others = [each for each in ("kms:cmk:get", "kms:cmk:sign", "kms:grant:list") if each != action]
    newcomer.may({"Effect": "Allow", "Action": [action]})
    assert lets_through(lambda: act(newcomer.kms, things))
    assert not any(lets_through(lambda each=each: ACTIONS[each](newcomer.kms, things)) for each in others)  # type: ignore[misc]  # mypy can't type a lambda's default
    newcomer.may({"Effect": "Allow", "Action": ["kms:*:*"]}, {"Effect": "Deny", "Action": [action]})
    assert not lets_through(lambda: act(newcomer.kms, things))
    assert all(lets_through(lambda each=each: ACTIONS[each](newcomer.kms, things)) for each in others)  # type: ignore[misc]  # mypy can't type a lambda's default


def test_what_no_policy_allows_is_refused(newcomer: NewUser, things: Things) -> None:
    newcomer.may({"Effect": "Allow", "Action": ["kms:none:none"]})
    assert {
        action for action, act in ACTIONS.items() if lets_through(partial(act, newcomer.kms, things))
    } == set()


def test_the_actions_tried_are_all_there_are() -> None:
    declared = {action for action in actions_of_methods() if action.startswith("kms:")}
    assert declared - {"kms:service:getStatus"} == set(ACTIONS)  # that one is hsmd's own, and in no SDK


def actions_of_methods() -> set[str]:
    """Every action that a method declares."""
    return {method.action for service in services() for _, method in methods_of(service) if method.action}
