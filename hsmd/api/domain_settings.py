"""Servicer of domain_settings.proto."""

from dataclasses import asdict
from typing import Any

from google.protobuf.message import Message

from hsmd.domain import domain_settings, password_rules
from hsmd.domain.core import Call
from hsmd.domain.domain_settings import Allowed, ApiAcl, LoginPolicy
from hsmd.domain.password_rules import PasswordPolicy
from hsmd.errors import IAM_INPUT_INVALID, IAM_NOT_FOUND, Error
from hsmd.pb.v1 import domain_settings_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["DomainSettings"]


def show_domain_password_policy(
    call: Call, request: pb.ShowDomainPasswordPolicyRequest
) -> pb.ShowDomainPasswordPolicyResponse:
    """IAM: GET .../password-policy."""
    policy = domain_settings.show_password_policy(call, request.domain_id)
    return pb.ShowDomainPasswordPolicyResponse(password_policy=_password_policy(policy))


def update_domain_password_policy(
    call: Call, request: pb.UpdateDomainPasswordPolicyRequest
) -> pb.UpdateDomainPasswordPolicyResponse:
    """IAM: PUT .../password-policy."""
    policy = domain_settings.update_password_policy(call, request.domain_id, _given(request.password_policy))
    return pb.UpdateDomainPasswordPolicyResponse(password_policy=_password_policy(policy))


def show_domain_login_policy(
    call: Call, request: pb.ShowDomainLoginPolicyRequest
) -> pb.ShowDomainLoginPolicyResponse:
    """IAM: GET .../login-policy."""
    policy = domain_settings.show_login_policy(call, request.domain_id)
    return pb.ShowDomainLoginPolicyResponse(login_policy=_login_policy(policy))


def update_domain_login_policy(
    call: Call, request: pb.UpdateDomainLoginPolicyRequest
) -> pb.UpdateDomainLoginPolicyResponse:
    """IAM: PUT .../login-policy."""
    policy = domain_settings.update_login_policy(call, request.domain_id, _given(request.login_policy))
    return pb.UpdateDomainLoginPolicyResponse(login_policy=_login_policy(policy))


def show_domain_api_acl_policy(
    call: Call, request: pb.ShowDomainApiAclPolicyRequest
) -> pb.ShowDomainApiAclPolicyResponse:
    """IAM: GET .../api-acl-policy."""
    acl = domain_settings.show_api_acl(call, request.domain_id)
    return pb.ShowDomainApiAclPolicyResponse(api_acl_policy=_api_acl(acl))


def update_domain_api_acl_policy(
    call: Call, request: pb.UpdateDomainApiAclPolicyRequest
) -> pb.UpdateDomainApiAclPolicyResponse:
    """IAM: PUT .../api-acl-policy."""
    given = request.api_acl_policy
    if given.allow_vpc_endpoints:
        raise Error(IAM_INPUT_INVALID, name="allow_vpc_endpoints", reason="there are no VPCs here")
    acl = ApiAcl(
        tuple(Allowed(each.address_netmask, each.description) for each in given.allow_address_netmasks),
        tuple(Allowed(each.ip_range, each.description) for each in given.allow_ip_ranges),
    )
    acl = domain_settings.update_api_acl(call, request.domain_id, acl)
    return pb.UpdateDomainApiAclPolicyResponse(api_acl_policy=_api_acl(acl))


def show_security_compliance(
    call: Call, request: pb.ShowSecurityComplianceRequest
) -> pb.ShowSecurityComplianceResponse:
    """IAM: GET .../config/security_compliance."""
    policy = domain_settings.show_password_policy(call, request.domain_id)
    compliance = pb.ShowSecurityComplianceResponse.Compliance(**_compliance(policy))
    config = pb.ShowSecurityComplianceResponse.Config(security_compliance=compliance)
    return pb.ShowSecurityComplianceResponse(config=config)


def show_security_compliance_by_option(
    call: Call, request: pb.ShowSecurityComplianceByOptionRequest
) -> pb.ShowSecurityComplianceByOptionResponse:
    """IAM: GET .../config/security_compliance/{option}."""
    found = _compliance(domain_settings.show_password_policy(call, request.domain_id))
    if request.option not in found:
        raise Error(IAM_NOT_FOUND, kind="option", id=request.option)
    only = {request.option: found[request.option]}
    return pb.ShowSecurityComplianceByOptionResponse(
        config=pb.ShowSecurityComplianceByOptionResponse.Config(**only)
    )


def _given(message: Message) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _compliance(policy: PasswordPolicy) -> dict[str, str]:
    return {"password_regex": policy.regex, "password_regex_description": policy.requirements}


def _password_policy(policy: PasswordPolicy) -> pb.PasswordPolicy:
    return pb.PasswordPolicy(
        **asdict(policy),
        maximum_password_length=password_rules.LONGEST,
        password_requirements=policy.requirements,
    )


def _login_policy(policy: LoginPolicy) -> pb.LoginPolicy:
    return pb.LoginPolicy(**asdict(policy))


def _api_acl(acl: ApiAcl) -> pb.ApiAclPolicy:
    netmasks = [
        pb.ApiAclPolicy.AddressNetmask(address_netmask=each.addresses, description=each.description)
        for each in acl.netmasks
    ]
    ranges = [
        pb.ApiAclPolicy.IpRange(ip_range=each.addresses, description=each.description) for each in acl.ranges
    ]
    return pb.ApiAclPolicy(allow_address_netmasks=netmasks, allow_ip_ranges=ranges)
